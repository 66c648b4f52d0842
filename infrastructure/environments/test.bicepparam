// The parameters of the environment "test". Replace Contoso's values with your own: the pipeline refuses these.
using '../main.bicep'

param environmentName = 'test'
param dataverseUrl = 'https://contoso-test.crm.dynamics.com'
param alertEmailAddresses = ['invoicing-operations@contoso.com']
