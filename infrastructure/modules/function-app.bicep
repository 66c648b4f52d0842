// The function app on Flex Consumption, the storage that it needs, and its settings.
//
// No compiler has seen this file; see main.bicep.

param functionAppName string
param storageAccountName string
param location string
param tags object
param identityId string
param identityClientId string
param functionPrincipalId string
param serviceBusHost string
param opportunityWonQueueName string
param failedQueueName string
param invoiceCreatedTopicName string
param dataverseUrl string
param dataverseOrganizationId string
param orderedOpportunity string
param maximumInstanceCount int
param alwaysReadyInstanceCount int
param applicationInsightsConnectionString string

// Each of these stands in one file only, from which whoever needs it takes it.
var pythonVersion = trim(loadTextContent('../python-version.txt'))
var hostConfiguration = loadJsonContent('../../host.json')
var deploymentContainerName = 'deployment'

var alwaysReady = [
  {
    name: 'function:GenerateInvoiceFunction'
    instanceCount: alwaysReadyInstanceCount
  }
]

var organizationSetting = {
  DATAVERSE_ORGANIZATION_ID: dataverseOrganizationId
}

// Built-in roles.
var storageBlobDataOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
var storageTableDataContributor = '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'

resource storage 'Microsoft.Storage/storageAccounts@2025-06-01' = {
  name: storageAccountName
  location: location
  tags: tags
  sku: {
    name: 'Standard_LRS'
  }
  kind: 'StorageV2'
  properties: {
    allowBlobPublicAccess: false
    // No keys: the host, the deployment and people all come with Entra tokens.
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2025-06-01' = {
  parent: storage
  name: 'default'
}

resource deploymentContainer 'Microsoft.Storage/storageAccounts/blobServices/containers@2025-06-01' = {
  parent: blobs
  name: deploymentContainerName
  properties: {
    publicAccess: 'None'
  }
}

// The host's locks, and the package.
resource functionOwnsBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(storage.id, functionPrincipalId, storageBlobDataOwner)
  scope: storage
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageBlobDataOwner)
  }
}

// The host's diagnostic events.
resource functionWritesTables 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(storage.id, functionPrincipalId, storageTableDataContributor)
  scope: storage
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageTableDataContributor)
  }
}

resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: 'plan-${functionAppName}'
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: {
    reserved: true
  }
}

resource app 'Microsoft.Web/sites@2025-03-01' = {
  name: functionAppName
  location: location
  tags: tags
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    siteConfig: {
      minTlsVersion: '1.2'
    }
    functionAppConfig: {
      runtime: {
        name: 'python'
        version: pythonVersion
      }
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${storage.properties.primaryEndpoints.blob}${deploymentContainerName}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      scaleAndConcurrency: {
        instanceMemoryMB: 2048
        maximumInstanceCount: maximumInstanceCount
        alwaysReady: alwaysReadyInstanceCount == 0 ? [] : alwaysReady
      }
    }
  }
  dependsOn: [
    deploymentContainer
    functionOwnsBlobs
    functionWritesTables
  ]
}

// Nobody deploys with a password.
resource noPasswordForDeployment 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'scm'
  properties: {
    allow: false
  }
}

resource noPasswordForFtp 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'ftp'
  properties: {
    allow: false
  }
}

resource settings 'Microsoft.Web/sites/config@2025-03-01' = {
  parent: app
  name: 'appsettings'
  properties: union(empty(dataverseOrganizationId) ? {} : organizationSetting, {
    // The platform's.
    AzureWebJobsStorage__accountName: storage.name
    AzureWebJobsStorage__credential: 'managedidentity'
    AzureWebJobsStorage__clientId: identityClientId
    APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
    // As many threads as the host hands out messages at once: with fewer, messages wait with their lock ticking.
    PYTHON_THREADPOOL_THREAD_COUNT: string(hostConfiguration.extensions.serviceBus.maxConcurrentCalls)

    // The trigger's and ours.
    ServiceBusConnection__fullyQualifiedNamespace: serviceBusHost
    ServiceBusConnection__credential: 'managedidentity'
    ServiceBusConnection__clientId: identityClientId
    OPPORTUNITY_WON_QUEUE: opportunityWonQueueName

    // Ours.
    OPPORTUNITY_WON_FAILED_QUEUE: failedQueueName
    INVOICE_CREATED_TOPIC: invoiceCreatedTopicName
    DATAVERSE_URL: dataverseUrl
    AZURE_CLIENT_ID: identityClientId
    ORDERED_OPPORTUNITY: orderedOpportunity
    RETRY_OPEN_SECONDS: '300'
    RETRY_RECORD_SECONDS: '3600'
    RETRY_OUTAGE_SECONDS: '259200'
    RETRY_FIRST_DELAY_SECONDS: '5'
    RETRY_MAX_DELAY_SECONDS: '900'
    INVOCATION_DEADLINE_SECONDS: '240'
  })
}

output name string = app.name
