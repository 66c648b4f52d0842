// Each scenario uses Microsoft's client against the broker at CONNECTION_STRING, one line of JSON per scenario:
// {"scenario": …, "ok": true} or {"scenario": …, "error": …}.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

// The modules are installed outside the source tree.
const require = createRequire(join(process.env.MODULES, "x.js"));
const { ServiceBusClient } = require("@azure/service-bus");
const Long = require("long");

const client = new ServiceBusClient(process.env.CONNECTION_STRING, { retryOptions: { maxRetries: 0 } });
const sender = client.createSender("plain");
const receiver = client.createReceiver("plain");

let ids = 0;
const message = (body, more = {}) => ({ body, messageId: `js-${++ids}`, ...more });

async function one(from = receiver) {
  const [message] = await from.receiveMessages(1, { maxWaitTimeInMs: 10_000 });
  assert.ok(message, "no message came");
  return message;
}

const scenarios = {
  async "send, receive and complete"() {
    await sender.sendMessages({
      body: { won: true },
      messageId: "js-won",
      subject: "news",
      contentType: "application/json",
      correlationId: "c",
      applicationProperties: { number: 5, text: "ü", truth: false },
    });
    const received = await one();
    assert.deepEqual(received.body, { won: true });
    assert.equal(received.messageId, "js-won");
    assert.equal(received.subject, "news");
    assert.equal(received.correlationId, "c");
    assert.deepEqual(received.applicationProperties, { number: 5, text: "ü", truth: false });
    assert.ok(received.lockedUntilUtc > received.enqueuedTimeUtc);
    await receiver.completeMessage(received);
    assert.deepEqual(await receiver.peekMessages(1, { fromSequenceNumber: Long.ZERO }), []);
  },

  async "a batch"() {
    const batch = await sender.createMessageBatch();
    for (const body of ["a", "b", "c"]) assert.ok(batch.tryAddMessage(message(body)));
    await sender.sendMessages(batch);
    const bodies = [];
    while (bodies.length < 3) {
      const received = await one();
      bodies.push(received.body);
      await receiver.completeMessage(received);
    }
    assert.deepEqual(bodies, ["a", "b", "c"]);
  },

  async "abandon with changed properties"() {
    await sender.sendMessages(message("x", { applicationProperties: { kept: 1 } }));
    await receiver.abandonMessage(await one(), { tried: "once" });
    const received = await one();
    assert.deepEqual(received.applicationProperties, { kept: 1, tried: "once" });
    assert.equal(received.deliveryCount, 1);
    await receiver.completeMessage(received);
  },

  async "dead-letter with reason"() {
    await sender.sendMessages(message("bad"));
    await receiver.deadLetterMessage(await one(), {
      deadLetterReason: "Bad",
      deadLetterErrorDescription: "really",
    });
    const deadLetters = client.createReceiver("plain", { subQueueType: "deadLetter" });
    const received = await one(deadLetters);
    assert.equal(received.deadLetterReason, "Bad");
    assert.equal(received.deadLetterErrorDescription, "really");
    assert.equal(received.deadLetterSource, "plain");
    await deadLetters.completeMessage(received);
    await deadLetters.close();
  },

  async "defer and receive by sequence number"() {
    await sender.sendMessages(message("later"));
    const deferred = await one();
    await receiver.deferMessage(deferred);
    const [received] = await receiver.receiveDeferredMessages(deferred.sequenceNumber);
    assert.equal(received.body, "later");
    await receiver.completeMessage(received);
  },

  async "schedule and cancel"() {
    const later = new Date(Date.now() + 3_600_000);
    const [first, second] = await sender.scheduleMessages([message("a"), message("b")], later);
    const scheduled = await receiver.peekMessages(2, { fromSequenceNumber: first });
    assert.deepEqual(scheduled.map((each) => each.state), ["scheduled", "scheduled"]);
    await sender.cancelScheduledMessages([first, second]);
    await sender.scheduleMessages(message("soon"), new Date(Date.now() + 100));
    const received = await one();
    assert.equal(received.body, "soon");
    await receiver.completeMessage(received);
  },

  async "renew a lock"() {
    await sender.sendMessages(message("slow"));
    const received = await one();
    const before = received.lockedUntilUtc;
    await new Promise((resolve) => setTimeout(resolve, 20));
    const until = await receiver.renewMessageLock(received);
    assert.ok(until > before);
    await receiver.completeMessage(received);
  },

  async "peek without touching"() {
    await sender.sendMessages([message(1), message(2)]);
    const peeked = await receiver.peekMessages(5, { fromSequenceNumber: Long.ZERO });
    assert.deepEqual(peeked.map((each) => each.body), [1, 2]);
    for (const expected of [1, 2]) {
      const received = await one();
      assert.equal(received.body, expected);
      assert.equal(received.deliveryCount, 0);
      await receiver.completeMessage(received);
    }
  },

  async "subscribe to a stream of messages"() {
    const streaming = client.createReceiver("other");
    const bodies = [];
    await new Promise((resolve, reject) => {
      streaming.subscribe(
        {
          async processMessage(received) {
            bodies.push(received.body);
            if (bodies.length === 50) resolve();
          },
          async processError(args) {
            reject(args.error);
          },
        },
        { maxConcurrentCalls: 4 },
      );
      const other = client.createSender("other");
      other.sendMessages(Array.from({ length: 50 }, (_, number) => message(number)));
    });
    assert.equal(new Set(bodies).size, 50);
    await streaming.close();
  },

  async "a topic's subscription"() {
    const topic = client.createSender("news");
    await topic.sendMessages(message("r", { subject: "news", applicationProperties: { colour: "red" } }));
    await topic.sendMessages(message("b", { subject: "news", applicationProperties: { colour: "blue" } }));
    const about = client.createReceiver("news", "about");
    const received = await one(about);
    assert.equal(received.body, "b");
    await about.completeMessage(received);
  },

  async "an entity that is not there"() {
    await assert.rejects(client.createSender("missing").sendMessages(message("x")), {
      code: "MessagingEntityNotFound",
    });
  },

  async "a message without an id gets one, and its lock is renewed"() {
    await sender.sendMessages({ body: "no id" });
    const received = await one();
    assert.equal(received.messageId.length, 32);
    await receiver.renewMessageLock(received);
    await receiver.completeMessage(received);
  },

  async "rules of a subscription"() {
    const rules = client.createRuleManager("news", "all");
    assert.deepEqual((await rules.getRules()).map((rule) => rule.name), ["$Default"]);
    await rules.createRule("sql", { sqlExpression: "colour = 'green'" });
    await rules.createRule("about", { subject: "x", applicationProperties: { colour: "green" } });
    await assert.rejects(rules.createRule("sql", { sqlExpression: "1=1" }), /already exists/);
    await assert.rejects(rules.createRule("bad", { sqlExpression: "colour =" }), /not understood/);
    await assert.rejects(rules.createRule("act", { sqlExpression: "1=1" }, { sqlExpression: "SET a = 1" }), /does not support actions/);
    await rules.deleteRule("$Default");
    await assert.rejects(rules.deleteRule("$Default"), /could not be found/);
    const [sql, about] = await rules.getRules();
    assert.equal(sql.filter.sqlExpression, "colour = 'green'");
    assert.equal(about.filter.subject, "x");
    assert.deepEqual(about.filter.applicationProperties, { colour: "green" });
    await rules.deleteRule("sql");
    await rules.deleteRule("about");
    await rules.createRule("all", { sqlExpression: "1=1" });
  },

  async "sessions are refused with a text that says so"() {
    const text = /The Service Bus emulator does not support sessions/;
    await assert.rejects(client.acceptSession("plain", "mine"), text);
    await assert.rejects(client.acceptNextSession("plain"), text);
  },

  async "a message that is too large"() {
    await assert.rejects(client.createSender("small").sendMessages(message("x".repeat(2000))), {
      code: "MessageSizeExceeded",
    });
  },
};

for (const [scenario, run] of Object.entries(scenarios)) {
  const result = { scenario, ok: true };
  try {
    await run();
  } catch (error) {
    result.ok = false;
    result.error = `${error.code ?? ""} ${error.stack ?? error}`;
  }
  console.log(JSON.stringify(result));
}
await client.close();
