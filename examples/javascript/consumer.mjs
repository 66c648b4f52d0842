// @ts-check
// Book the events "invoice created" of a Service Bus subscription in a ledger, each exactly once.
//
// The entry is committed before the message is completed. If the process is killed in between, the message comes again,
// and the ledger finds its event's id. So it can be killed and started again at any time, and several can run at once.
//
// Settings (environment variables): ServiceBusConnection__fullyQualifiedNamespace (log in with an identity) or
// ServiceBusConnection (a connection string); INVOICE_CREATED_TOPIC, LEDGER_SUBSCRIPTION, LEDGER_FILE.
import { readFileSync } from 'node:fs';
import { DefaultAzureCredential } from '@azure/identity';
import { ServiceBusClient, isServiceBusError } from '@azure/service-bus';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { CannotBook, Ledger, entryOf } from './ledger.mjs';

/** @typedef {import('./invoice-created.v1.d.ts').InvoiceCreatedV1Event} InvoiceCreated */

const { env } = process;
const CONTRACTS = env.CONTRACTS ? new URL(`file://${env.CONTRACTS}/`) : new URL('../../shared/contracts/', import.meta.url);

/** Receive until the process is ended. Every failure ends it: let your platform start it again. */
async function main() {
  const ledger = new Ledger(env.LEDGER_FILE ?? 'ledger.db');
  const isEvent = eventValidator();
  const receiver = client().createReceiver(
    env.INVOICE_CREATED_TOPIC ?? 'invoice-created',
    env.LEDGER_SUBSCRIPTION ?? 'ledger',
  );
  for await (const message of receiver.getMessageIterator()) {
    await handle(message, receiver, isEvent, ledger);
  }
}

function client() {
  const namespace = env.ServiceBusConnection__fullyQualifiedNamespace;
  return namespace
    ? new ServiceBusClient(namespace, new DefaultAzureCredential())
    : new ServiceBusClient(env.ServiceBusConnection ?? '');
}

/**
 * Book one message, or dead-letter it with the reason.
 * @param {import('@azure/service-bus').ServiceBusReceivedMessage} message
 * @param {import('@azure/service-bus').ServiceBusReceiver} receiver
 * @param {import('ajv/dist/2020.js').ValidateFunction<InvoiceCreated>} isEvent
 * @param {Ledger} ledger
 */
async function handle(message, receiver, isEvent, ledger) {
  try {
    const event = message.body; // The SDK has parsed the JSON.
    if (!isEvent(event)) {
      const [problem] = isEvent.errors ?? [];
      throw new CannotBook('InvalidEvent', `${problem?.instancePath} ${problem?.message}`);
    }
    const entry = entryOf(event);
    const booked = ledger.book(entry);
    await receiver.completeMessage(message);
    console.log(`${booked ? 'booked' : 'booked before'} ${entry.eventId}: invoice ${entry.invoiceNumber}`);
  } catch (error) {
    if (error instanceof CannotBook) {
      await deadLetter(message, receiver, error);
    } else if (isServiceBusError(error) && error.code === 'MessageLockLost') {
      console.log(`lock lost ${message.messageId}: the message comes again`);
    } else {
      throw error;
    }
  }
}

/**
 * @param {import('@azure/service-bus').ServiceBusReceivedMessage} message
 * @param {import('@azure/service-bus').ServiceBusReceiver} receiver
 * @param {CannotBook} problem
 */
async function deadLetter(message, receiver, problem) {
  await receiver.deadLetterMessage(message, {
    deadLetterReason: problem.reason,
    deadLetterErrorDescription: problem.message.slice(0, 1000),
  });
  console.log(`dead-lettered ${message.messageId}: ${problem.reason}`);
}

/** Return a validator of the whole event. Members that the schema does not know are valid. */
function eventValidator() {
  const [event, data] = ['invoice-created.v1.event.schema.json', 'invoice-created.v1.schema.json'].map((name) =>
    JSON.parse(readFileSync(new URL(name, CONTRACTS), 'utf8')),
  );
  // The patterns of the schema say what its formats say.
  const ajv = new Ajv2020({ strict: false, validateFormats: false });
  ajv.addSchema(data, 'invoice-created.v1.schema.json');
  return /** @type {import('ajv/dist/2020.js').ValidateFunction<InvoiceCreated>} */ (ajv.compile(event));
}

await main();
