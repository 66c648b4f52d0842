// @ts-check
// A ledger in SQLite: an event "invoice created" becomes one entry whose postings add up to zero.
import { readFileSync } from 'node:fs';
// The interface of node:sqlite, for Node.js 20 too. From Node.js 22.13 on: import { DatabaseSync } from 'node:sqlite';
import { DatabaseSync } from '@photostructure/sqlite';

/**
 * @typedef {import('./invoice-created.v1.d.ts').InvoiceCreatedV1Event} InvoiceCreated
 * @typedef {{ account: string, text: string | null, amount: bigint }} Posting A debit is positive, a credit negative.
 * @typedef {{ eventId: string, invoiceId: string, invoiceNumber: string | null, customer: string | null, total: bigint,
 *   currency: string, decimalPlaces: number, dueDate: string | null, postings: Posting[] }} Entry
 */

const SCHEMA = new URL('../ledger.sql', import.meta.url);

/** The event cannot be booked; `reason` is a word for machines, the message is for people. */
export class CannotBook extends Error {
  /** @param {string} reason @param {string} text */
  constructor(reason, text) {
    super(text);
    this.reason = reason;
  }
}

/**
 * Return the entry for a valid event; throw CannotBook where a person has to decide.
 * @param {InvoiceCreated} event
 * @returns {Entry}
 */
export function entryOf({ id, data }) {
  const { totalAmount: total, currency, amounts } = data;
  if (data.pricingErrorCode !== null) {
    throw new CannotBook('PricingError', `Dataverse reports the pricing error ${data.pricingErrorCode}.`);
  }
  if (total === null || currency === null || !amounts) {
    throw new CannotBook('AmountsMissing', 'The event has no total, no currency, or no amounts.');
  }
  if (!data.totalsAgree) {
    throw new CannotBook('TotalsDisagree', "Dataverse's lines, discounts, freight and tax do not add up.");
  }
  const places = (total.split('.')[1] ?? '').length;
  const units = (/** @type {string | null} */ amount) => unitsOf(amount ?? '0', places);
  const customer = data.customer?.number ?? data.customer?.id ?? null;
  /** @type {Posting[]} */
  const postings = [
    { account: 'receivables', text: customer, amount: units(total) },
    ...revenue(data, units),
    { account: 'discounts', text: null, amount: units(amounts.linesTotal) - units(amounts.totalBeforeFreight) },
    { account: 'freight', text: null, amount: -units(amounts.freight) },
    { account: 'tax', text: null, amount: -units(amounts.tax) },
  ];
  if (postings.reduce((sum, posting) => sum + posting.amount, 0n) !== 0n) {
    throw new CannotBook('TotalsDisagree', 'The lines of the event do not add up to its total.');
  }
  return {
    eventId: id,
    invoiceId: data.invoiceId,
    invoiceNumber: data.invoiceNumber,
    customer,
    total: units(total),
    currency: currency.isoCode,
    decimalPlaces: places,
    dueDate: data.dueDate ?? null,
    postings: postings.filter((posting) => posting.amount !== 0n),
  };
}

/**
 * @param {InvoiceCreated['data']} data
 * @param {(amount: string | null) => bigint} units
 * @returns {Posting[]}
 */
function revenue(data, units) {
  if (!data.lines) {
    // They did not fit into the message; the amounts are complete all the same.
    const text = `${data.lineCount} lines`;
    return [{ account: 'revenue', text, amount: -units(data.amounts?.linesTotal ?? null) }];
  }
  return data.lines
    .filter((line) => line.isPriced) // The price of a required part is in the line of its bundle.
    .map((line) => ({
      account: 'revenue',
      text: line.product ? line.product.name : line.description,
      amount: units(line.tax) - units(line.amount),
    }));
}

/**
 * Return an amount in the currency's smallest unit: never a floating-point number.
 * @param {string} amount
 * @param {number} places
 */
function unitsOf(amount, places) {
  const [whole, fraction = ''] = amount.split('.');
  const units = BigInt(whole + fraction.padEnd(places, '0'));
  // SQLite's integers have 64 bits.
  if (fraction.length > places || BigInt.asIntN(64, units) !== units) {
    throw new CannotBook('AmountsMissing', `${amount} cannot be booked with ${places} decimal places.`);
  }
  return units;
}

/** The entries, in a file. A crash at any time leaves whole entries only. */
export class Ledger {
  /** @param {string} path */
  constructor(path) {
    this.database = new DatabaseSync(path, { timeout: 30_000 });
    this.database.exec(readFileSync(SCHEMA, 'utf8'));
  }

  /**
   * Store an entry and return true, or return false if its event was booked before.
   * @param {Entry} entry
   */
  book(entry) {
    this.database.exec('BEGIN IMMEDIATE');
    try {
      const { changes } = this.database
        .prepare('INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING')
        .run(
          entry.eventId,
          entry.invoiceId,
          entry.invoiceNumber,
          entry.customer,
          entry.total,
          entry.currency,
          entry.decimalPlaces,
          entry.dueDate,
        );
      if (changes) {
        const insert = this.database.prepare('INSERT INTO posting VALUES (?, ?, ?, ?, ?)');
        entry.postings.forEach(({ account, text, amount }, number) =>
          insert.run(entry.eventId, number, account, text, amount),
        );
      }
      this.database.exec('COMMIT');
      return Boolean(changes);
    } catch (error) {
      this.database.exec('ROLLBACK');
      throw error;
    }
  }
}
