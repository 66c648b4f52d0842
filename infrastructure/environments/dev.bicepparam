// The parameters of the environment "dev". Replace Contoso's values with your own: the pipeline refuses these.
using '../main.bicep'

param environmentName = 'dev'
param dataverseUrl = 'https://contoso-dev.crm.dynamics.com'
param alertEmailAddresses = ['invoicing-operations@contoso.com']
