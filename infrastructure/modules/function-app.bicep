// The function app on Flex Consumption, the storage that it needs, and its settings.

import { RetryBounds, Tags } from '../types.bicep'

@description('Name of the function app.')
param functionAppName string

@description('Name of the storage account.')
param storageAccountName string

@description('Region.')
param location string

@description('Tags of the resources.')
param tags Tags

@description('Resource id of the function\'s identity. It is known before the deployment, so that names derive from it.')
param functionIdentityId string

@description('Principal id of the function\'s identity.')
param functionPrincipalId string

@description('Client id of the function\'s identity.')
param functionClientId string

@description('Host name of the Service Bus namespace.')
param serviceBusHost string

@description('The Dataverse environment.')
param dataverseUrl string

@description('Id of the Dataverse organization; empty: not checked.')
param dataverseOrganizationId string

@description('What to do with a won opportunity that has a sales order.')
param orderedOpportunity string

@description('Who owns an invoice that the function generates.')
param invoiceOwner string

@description('Logical names of further columns of the invoice for its event.')
param invoiceColumns string[]

@description('For how long, and how often, the function retries.')
param retryBounds RetryBounds

@description('Maximum number of instances.')
param maximumInstanceCount int

@description('Number of instances that are always running.')
param alwaysReadyInstanceCount int

@description('Connection string of Application Insights.')
param applicationInsightsConnectionString string

@description('Whether the app\'s HTTP endpoint accepts connections.')
param httpInbound 'Allow' | 'Deny'

@description('Whether and where the function exports spans and metrics.')
param telemetry 'off' | 'azureMonitor'

@description('The version of Python, which the package is built for too.')
var pythonVersion = trim(loadTextContent('../python-version.txt'))

@description('The configuration that the Functions host reads.')
var hostConfiguration = loadJsonContent('../../host.json')

@description('The entities of the namespace.')
var entities = loadJsonContent('../entities.json').UserConfig.Namespaces[0]

@description('The blob container for the package.')
var deploymentContainerName = 'deployment'

@description('Always-ready instances of the function.')
var alwaysReady = [
  {
    name: 'function:GenerateInvoiceFunction'
    instanceCount: alwaysReadyInstanceCount
  }
]

@description('The setting that exists only where the organization is known.')
var organizationSetting = {
  DATAVERSE_ORGANIZATION_ID: dataverseOrganizationId
}

@description('The settings that exist only where telemetry is on. Statistics about the exporter itself would go to Microsoft.')
var telemetrySettings = {
  TELEMETRY_EXPORTER: 'azure-monitor'
  APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL: 'true'
}

@description('Built-in role: Storage Blob Data Owner.')
var storageBlobDataOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'

@description('Built-in role: Storage Table Data Contributor.')
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
    // No keys: the host, the deployment and people authenticate with Entra tokens.
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
  name: guid(storage.id, functionIdentityId, storageBlobDataOwner)
  scope: storage
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageBlobDataOwner)
  }
}

// The host's diagnostic events.
resource functionWritesTables 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(storage.id, functionIdentityId, storageTableDataContributor)
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
      '${functionIdentityId}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    publicNetworkAccess: 'Enabled'
    siteConfig: {
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
      // The function has no HTTP trigger, so no client needs the app's own endpoint.
      ipSecurityRestrictionsDefaultAction: httpInbound
      // Microsoft-hosted agents deploy from addresses that are not known beforehand, with an Entra token.
      scmIpSecurityRestrictionsUseMain: false
      scmIpSecurityRestrictionsDefaultAction: 'Allow'
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
            userAssignedIdentityResourceId: functionIdentityId
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

// Deployments with a password are off.
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
  properties: union(
    empty(dataverseOrganizationId) ? {} : organizationSetting,
    telemetry == 'off' ? {} : telemetrySettings,
    {
      // Read by the platform.
      AzureWebJobsStorage__accountName: storage.name
      AzureWebJobsStorage__credential: 'managedidentity'
      AzureWebJobsStorage__clientId: functionClientId
      APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
      APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${functionClientId};Authorization=AAD'
      // One thread for each message that the host delivers at once: with fewer, messages wait while their lock expires.
      PYTHON_THREADPOOL_THREAD_COUNT: string(hostConfiguration.extensions.serviceBus.maxConcurrentCalls)

      // Read by the trigger and by the function.
      ServiceBusConnection__fullyQualifiedNamespace: serviceBusHost
      ServiceBusConnection__credential: 'managedidentity'
      ServiceBusConnection__clientId: functionClientId
      OPPORTUNITY_WON_QUEUE: entities.Queues[0].Name

      // Read by the function.
      OPPORTUNITY_WON_FAILED_QUEUE: entities.Queues[1].Name
      INVOICE_CREATED_TOPIC: entities.Topics[0].Name
      DATAVERSE_URL: dataverseUrl
      AZURE_CLIENT_ID: functionClientId
      ORDERED_OPPORTUNITY: orderedOpportunity
      INVOICE_OWNER: invoiceOwner
      INVOICE_COLUMNS: join(invoiceColumns, ',')
      RETRY_OPEN_SECONDS: string(retryBounds.openSeconds)
      RETRY_RECORD_SECONDS: string(retryBounds.recordSeconds)
      RETRY_OUTAGE_SECONDS: string(retryBounds.outageSeconds)
      RETRY_FIRST_DELAY_SECONDS: string(retryBounds.firstDelaySeconds)
      RETRY_MAX_DELAY_SECONDS: string(retryBounds.maxDelaySeconds)
      INVOCATION_DEADLINE_SECONDS: '240'
    }
  )
}

@description('Name of the function app.')
output name string = app.name
