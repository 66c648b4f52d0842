// Types that several modules share.

@export()
@description('Tags of every resource.')
type Tags = {
  @description('The application that the resource belongs to.')
  application: string

  @description('The environment that the resource belongs to.')
  environment: string
}

@export()
@description('For how long, and how often, the function retries. All values are in seconds.')
type RetryBounds = {
  @description('How long the function retries a win whose opportunity is still open.')
  openSeconds: int

  @description('How long the function retries a win that a person can fix, such as a missing price list.')
  recordSeconds: int

  @description('How long the function retries during an outage. Keep it below the time to live of the queue, 14 days.')
  outageSeconds: int

  @description('The delay before the first retry. It doubles with each attempt.')
  firstDelaySeconds: int

  @description('The upper limit of the delay.')
  maxDelaySeconds: int
}
