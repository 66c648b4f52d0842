// The parameters of the environment "prod". Replace Contoso's values with your own: the pipeline refuses these.
using '../main.bicep'

param environmentName = 'prod'
param dataverseUrl = 'https://contoso.crm.dynamics.com'
param alertEmailAddresses = ['invoicing-operations@contoso.com']
param logRetentionDays = 90
param alwaysReadyInstanceCount = 1
