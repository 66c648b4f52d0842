// What is particular to the environment "dev". Put your own values in place of Contoso's: the pipeline refuses these.
// No compiler has seen this file; see main.bicep.
using '../main.bicep'

param environmentName = 'dev'
param dataverseUrl = 'https://contoso-dev.crm.dynamics.com'
param alertEmailAddresses = ['invoicing-operations@contoso.com']
