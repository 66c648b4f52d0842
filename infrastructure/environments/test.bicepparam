// What is particular to the environment "test". Put your own values in place of Contoso's: the pipeline refuses these.
// No compiler has seen this file; see main.bicep.
using '../main.bicep'

param environmentName = 'test'
param dataverseUrl = 'https://contoso-test.crm.dynamics.com'
param alertEmailAddresses = ['invoicing-operations@contoso.com']
