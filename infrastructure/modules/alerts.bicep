// What wakes somebody up. docs/operate.md says for each alert what it means and what to do.
//
// Not here: wins without an invoice. That is a question to Dataverse, asked by infrastructure/pipelines/reconcile.yml
// every day.
//
// No compiler has seen this file; see main.bicep.

param environmentName string
param location string
param tags object
param emailAddresses array
param namespaceId string
param workspaceId string
param opportunityWonQueueName string
param failedQueueName string
param invoiceCreatedTopicName string
param paused bool

var queueAlerts = [
  {
    name: 'failed-messages'
    description: 'Messages are in the failed queue: wins that became no invoice, or events that could not be published.'
    severity: 1
    enabled: true
    // Not ActiveMessages: to pick one message, operations defers those before it, and they still have to be seen to.
    metric: 'Messages'
    entities: [failedQueueName]
    aggregation: 'Maximum'
    window: 'PT5M'
  }
  {
    name: 'dead-letters'
    description: 'A dead-letter queue is not empty. The main queue forwards its own, so this is never the normal way.'
    severity: 1
    enabled: true
    metric: 'DeadletteredMessages'
    entities: [opportunityWonQueueName, failedQueueName, invoiceCreatedTopicName]
    aggregation: 'Maximum'
    window: 'PT5M'
  }
  {
    name: 'wins-waiting'
    description: 'For 30 minutes the queue was never empty: the function is not running, or does not keep up.'
    severity: 2
    enabled: !paused
    metric: 'ActiveMessages'
    entities: [opportunityWonQueueName]
    aggregation: 'Minimum'
    window: 'PT30M'
  }
  {
    name: 'service-bus-throttled'
    description: 'Service Bus refused requests because there were too many.'
    severity: 3
    enabled: true
    metric: 'ThrottledRequests'
    entities: ['*']
    aggregation: 'Total'
    window: 'PT5M'
  }
]

var logAlerts = [
  {
    name: 'old-retries'
    description: 'Messages have been tried again for more than 30 minutes: something is down, or not set up.'
    severity: 2
    query: loadTextContent('../queries/old-retries.kql')
    window: 'PT15M'
    threshold: 0
  }
  {
    name: 'dataverse-throttled'
    description: 'Dataverse refused calls because there were too many.'
    severity: 3
    query: loadTextContent('../queries/dataverse-throttled.kql')
    window: 'PT15M'
    threshold: 20
  }
]

resource operators 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: 'ag-invoicing-${environmentName}'
  location: 'global'
  tags: tags
  properties: {
    groupShortName: 'invoicing'
    enabled: true
    emailReceivers: [
      for address in emailAddresses: {
        name: address
        emailAddress: address
        useCommonAlertSchema: true
      }
    ]
  }
}

resource metricAlerts 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for alert in queueAlerts: {
    name: 'invoicing-${environmentName}-${alert.name}'
    location: 'global'
    tags: tags
    properties: {
      description: alert.description
      severity: alert.severity
      enabled: alert.enabled
      scopes: [namespaceId]
      evaluationFrequency: 'PT5M'
      windowSize: alert.window
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: alert.name
            metricNamespace: 'Microsoft.ServiceBus/namespaces'
            metricName: alert.metric
            dimensions: [
              {
                name: 'EntityName'
                operator: 'Include'
                values: alert.entities
              }
            ]
            operator: 'GreaterThan'
            threshold: 0
            timeAggregation: alert.aggregation
          }
        ]
      }
      actions: [
        {
          actionGroupId: operators.id
        }
      ]
    }
  }
]

resource queryAlerts 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [
  for alert in logAlerts: {
    name: 'invoicing-${environmentName}-${alert.name}'
    location: location
    tags: tags
    kind: 'LogAlert'
    properties: {
      displayName: 'invoicing-${environmentName}-${alert.name}'
      description: alert.description
      severity: alert.severity
      enabled: true
      scopes: [workspaceId]
      evaluationFrequency: 'PT5M'
      windowSize: alert.window
      autoMitigate: true
      // The tables come into being with the first line that is logged.
      skipQueryValidation: true
      criteria: {
        allOf: [
          {
            query: alert.query
            timeAggregation: 'Count'
            operator: 'GreaterThan'
            threshold: alert.threshold
            failingPeriods: {
              numberOfEvaluationPeriods: 1
              minFailingPeriodsToAlert: 1
            }
          }
        ]
      }
      actions: {
        actionGroups: [operators.id]
      }
    }
  }
]
