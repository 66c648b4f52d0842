// Alerts. docs/operate.md says for each one what it means and what to do.
//
// A stateful alert notifies once until its condition has ended. That fits a condition which somebody ends soon. What would
// hide later events behind an open condition is stateless (parked messages), or split by reason (old retries).
//
// Wins without an invoice are not visible here: infrastructure/pipelines/reconcile.yml queries Dataverse for them every day.

import { Tags } from '../types.bicep'

@description('The environment, for the names.')
param environmentName string

@description('Region of the log alerts.')
param location string

@description('Tags of the resources.')
param tags Tags

@description('Addresses that receive the alerts.')
param emailAddresses string[]

@description('Name of the Service Bus namespace.')
param namespaceName string

@description('Name of the Log Analytics workspace.')
param workspaceName string

@description('Maximum size of a queue or topic, in MB.')
param maxSizeInMegabytes int

@description('true: the queue delivers no messages, so that waiting messages are expected.')
param paused bool

@description('The entities of the namespace.')
var entities = loadJsonContent('../entities.json').UserConfig.Namespaces[0]

@description('The queue that Dynamics posts to.')
var wonQueue = entities.Queues[0].Name

@description('The queue for messages that failed for good.')
var failedQueue = entities.Queues[1].Name

@description('The topic for created invoices.')
var createdTopic = entities.Topics[0].Name

@description('The daily reminder. It has no action of its own: a processing rule adds the action group once a day.')
var reminder = 'failed-messages-daily'

@description('Alerts on the metrics of Service Bus.')
var queueAlerts = [
  {
    name: 'failed-messages'
    description: 'The failed queue is not empty: wins without an invoice, or events that could not be published.'
    severity: 1
    enabled: true
    stateful: true
    // Not ActiveMessages: to select one message, operations defers the ones before it, and they still need a decision.
    metric: 'Messages'
    entities: [failedQueue]
    aggregation: 'Maximum'
    threshold: 0
    frequency: 'PT5M'
    window: 'PT5M'
  }
  {
    name: reminder
    description: 'The failed queue is still not empty. This reminder comes every day until it is.'
    severity: 2
    enabled: true
    stateful: false
    metric: 'Messages'
    entities: [failedQueue]
    aggregation: 'Maximum'
    threshold: 0
    frequency: 'PT30M'
    window: 'PT30M'
  }
  {
    name: 'dead-letters'
    description: 'A dead-letter queue is not empty. The main queue forwards its dead letters, so these belong to the failed queue or to a subscription.'
    severity: 1
    enabled: true
    stateful: true
    metric: 'DeadletteredMessages'
    entities: [wonQueue, failedQueue, createdTopic]
    aggregation: 'Maximum'
    threshold: 0
    frequency: 'PT5M'
    window: 'PT5M'
  }
  {
    name: 'wins-waiting'
    description: 'The queue was never empty for 30 minutes: the function does not run, or is too slow.'
    severity: 2
    enabled: !paused
    stateful: true
    metric: 'ActiveMessages'
    entities: [wonQueue]
    aggregation: 'Minimum'
    threshold: 0
    frequency: 'PT5M'
    window: 'PT30M'
  }
  {
    name: 'queue-size'
    description: 'A queue or the topic has reached 80 % of its maximum size. A full one refuses new messages.'
    severity: 1
    enabled: true
    stateful: true
    metric: 'Size'
    entities: [wonQueue, failedQueue, createdTopic]
    aggregation: 'Maximum'
    // 80 % in bytes.
    threshold: maxSizeInMegabytes * 1024 * 1024 / 10 * 8
    frequency: 'PT5M'
    window: 'PT5M'
  }
  {
    name: 'service-bus-throttled'
    description: 'Service Bus refused requests because there were too many.'
    severity: 3
    enabled: true
    stateful: true
    metric: 'ThrottledRequests'
    entities: ['*']
    aggregation: 'Total'
    threshold: 0
    frequency: 'PT5M'
    window: 'PT5M'
  }
]

@description('A dimension that splits a log alert: each reason is an alert of its own.')
var byReason = [
  {
    name: 'Reason'
    operator: 'Include'
    values: ['*']
  }
]

@description('Alerts on the logs of the function.')
var logAlerts = [
  {
    name: 'parked'
    description: 'The function parked messages in the last 10 minutes. Their reasons are the dimension of this alert.'
    severity: 1
    stateful: false
    // Twice the frequency, here and below: a line that arrives late still counts, and most lines count twice.
    query: loadTextContent('../queries/alerts/parked.kql')
    window: 'PT10M'
    threshold: 0
    dimensions: byReason
  }
  {
    name: 'old-retries'
    description: 'The function has been retrying messages for more than 30 minutes: a dependency is unavailable, or not configured.'
    severity: 2
    stateful: true
    query: loadTextContent('../queries/alerts/old-retries.kql')
    window: 'PT30M'
    threshold: 0
    dimensions: byReason
  }
  {
    name: 'failed-invocations'
    description: 'Invocations ended with an exception. Service Bus delivers the message again, and dead-letters it after 10 deliveries.'
    severity: 2
    stateful: false
    query: loadTextContent('../queries/alerts/failed-invocations.kql')
    window: 'PT10M'
    threshold: 0
    dimensions: []
  }
  {
    name: 'dataverse-throttled'
    description: 'Dataverse throttled more than 20 attempts in 15 minutes.'
    severity: 3
    stateful: true
    query: loadTextContent('../queries/alerts/dataverse-throttled.kql')
    window: 'PT15M'
    threshold: 20
    dimensions: []
  }
]

resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' existing = {
  name: namespaceName
}

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

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

resource metricAlerts 'Microsoft.Insights/metricAlerts@2026-01-01' = [
  for alert in queueAlerts: {
    name: 'invoicing-${environmentName}-${alert.name}'
    location: 'global'
    tags: tags
    properties: {
      description: alert.description
      severity: alert.severity
      enabled: alert.enabled
      scopes: [namespace.id]
      evaluationFrequency: alert.frequency
      windowSize: alert.window
      autoMitigate: alert.stateful
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
            threshold: alert.threshold
            timeAggregation: alert.aggregation
          }
        ]
      }
      actions: alert.name == reminder
        ? []
        : [
            {
              actionGroupId: operators.id
            }
          ]
    }
  }
]

resource queryAlerts 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = [
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
      scopes: [workspace.id]
      evaluationFrequency: 'PT5M'
      windowSize: alert.window
      autoMitigate: alert.stateful
      // Azure creates the tables with the first line that is logged.
      skipQueryValidation: true
      criteria: {
        allOf: [
          {
            query: alert.query
            timeAggregation: 'Count'
            dimensions: alert.dimensions
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

// A stateless metric alert notifies after each evaluation, and Azure evaluates at least once an hour. The rule has no
// action group of its own, so that its notifications go out in one hour of the day only.
resource dailyReminder 'Microsoft.AlertsManagement/actionRules@2021-08-08' = {
  name: 'invoicing-${environmentName}-${reminder}'
  location: 'global'
  tags: tags
  properties: {
    description: 'Sends the reminder of the failed queue between 07:00 and 08:00 UTC.'
    enabled: true
    scopes: [namespace.id]
    conditions: [
      {
        field: 'AlertRuleName'
        operator: 'Equals'
        values: ['invoicing-${environmentName}-${reminder}']
      }
    ]
    schedule: {
      timeZone: 'UTC'
      recurrences: [
        {
          recurrenceType: 'Daily'
          startTime: '07:00:00'
          endTime: '08:00:00'
        }
      ]
    }
    actions: [
      {
        actionType: 'AddActionGroups'
        actionGroupIds: [operators.id]
      }
    ]
  }
}
