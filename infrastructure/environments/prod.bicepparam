// What is particular to the environment "prod". Put your own values in place of Contoso's: the pipeline refuses these.
// No compiler has seen this file; see main.bicep.
using '../main.bicep'

param environmentName = 'prod'
param dataverseUrl = 'https://contoso.crm.dynamics.com'
param alertEmailAddresses = ['invoicing-operations@contoso.com']
param logRetentionDays = 90
param alwaysReadyInstanceCount = 1
