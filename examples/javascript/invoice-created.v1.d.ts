/**
 * The whole body of the event "invoice created": a CloudEvent 1.0 in structured JSON.
 */
export interface InvoiceCreatedV1Event {
  specversion: "1.0";
  /**
   * The same for every event of an invoice: deduplicate by source and id.
   */
  id: string;
  /**
   * The URL of the Dataverse environment.
   */
  source: string;
  type: "invoice-from-opportunity.sales.invoice.created.v1";
  /**
   * opportunities/{opportunity's id}/invoices/{invoice's id}
   */
  subject: string;
  /**
   * When the invoice was created, RFC 3339 in UTC.
   */
  time: string;
  dataschema: "urn:uuid:a0a5b840-4b19-42fa-9995-0b6e42b15e0a";
  datacontenttype: "application/json";
  data: InvoiceCreatedV1;
  [k: string]: unknown;
}
/**
 * The data of the event "invoice created": the invoice as it was when it was first published. New members may be added: ignore what you do not know.
 */
export interface InvoiceCreatedV1 {
  /**
   * The invoice's id in Dataverse, in lower case with hyphens.
   */
  invoiceId: string;
  /**
   * The number that people see.
   */
  invoiceNumber: string | null;
  /**
   * The invoice's name, usually the opportunity's.
   */
  name: string | null;
  /**
   * The won opportunity's id in Dataverse, in lower case with hyphens.
   */
  opportunityId: string;
  /**
   * Whom the invoice is for.
   */
  customer: {
    /**
     * The logical name of the customer's table: account or contact.
     */
    kind: string;
    /**
     * The id of the account or contact.
     */
    id: string;
    /**
     * The account's number. Null for a contact, for an account without a number, and where the function may not read accounts.
     */
    number?: string | null;
    [k: string]: unknown;
  } | null;
  /**
   * The total in the invoice's currency, as a decimal number in a text, rounded half up to the currency's precision: read it as a decimal, never as a binary floating-point number.
   */
  totalAmount: string | null;
  /**
   * The currency of the amounts.
   */
  currency: {
    /**
     * The currency's id in Dataverse.
     */
    id: string;
    /**
     * The code of ISO 4217, such as EUR.
     */
    isoCode: string;
    [k: string]: unknown;
  } | null;
  /**
   * Dataverse's code where a price could not be calculated, so that the amount is not to be relied on; null where all is well.
   */
  pricingErrorCode: number | null;
  /**
   * When the invoice was created, RFC 3339 in UTC.
   */
  createdOn: string;
  /**
   * The invoice in Dynamics 365, for people.
   */
  link: string;
  /**
   * The id of the sales order that the invoice belongs to; null where there is none.
   */
  orderId?: string | null;
  /**
   * The day on which the payment is due; null where none is entered.
   */
  dueDate?: string | null;
  /**
   * The payment terms; null where none are entered.
   */
  paymentTerms?: {
    /**
     * The value of the choice in Dataverse. Organizations can add values.
     */
    code: number;
    /**
     * The label of the choice, in the language of the function's Dataverse user.
     */
    label: string | null;
    [k: string]: unknown;
  } | null;
  /**
   * The parts of totalAmount, as Dataverse stores them: totalBeforeFreight + freight + tax = totalAmount. Amounts are written as totalAmount is; null where Dataverse has none.
   */
  amounts?: {
    /**
     * The sum of the priced lines, after line discounts, without tax.
     */
    linesTotal: string | null;
    /**
     * The sum of the discounts on lines, which linesTotal already contains.
     */
    lineDiscounts: string | null;
    /**
     * The discount on the whole invoice, as an amount.
     */
    discountAmount: string | null;
    /**
     * The discount on the whole invoice, as a percentage of linesTotal.
     */
    discountPercentage: string | null;
    /**
     * The discounts on lines and on the whole invoice together.
     */
    totalDiscounts: string | null;
    /**
     * linesTotal after the discounts on the whole invoice, without freight and tax.
     */
    totalBeforeFreight: string | null;
    /**
     * The freight, without tax.
     */
    freight: string | null;
    /**
     * The tax on the whole invoice.
     */
    tax: string | null;
    [k: string]: unknown;
  };
  /**
   * Whether lines, discounts, freight and tax add up to totalAmount. Where it is false, a person has to check the invoice before it is booked.
   */
  totalsAgree?: boolean;
  /**
   * The number of lines of the invoice.
   */
  lineCount?: number;
  /**
   * True where the lines do not fit into a message: then lines is null, and the amounts are still complete.
   */
  linesOmitted?: boolean;
  /**
   * The lines, in the order of their positions; null where linesOmitted is true. Amounts are as Dataverse stores them; quantities and prices are decimal numbers in a text without trailing zeros.
   */
  lines?: InvoiceLine[] | null;
  /**
   * Further columns of the invoice, by logical name, as the setting INVOICE_COLUMNS lists them. Absent where it lists none.
   */
  columns?: {
    [k: string]: InvoiceColumn;
  };
  [k: string]: unknown;
}
/**
 * A line of the invoice.
 */
export interface InvoiceLine {
  /**
   * The line's id in Dataverse.
   */
  id: string;
  /**
   * The line's number on the invoice; not necessarily unique.
   */
  position: number | null;
  /**
   * product, bundle, requiredPart or optionalPart (of a bundle), or service; null for another kind. New kinds may be added.
   */
  kind: string | null;
  /**
   * False for a required part of a bundle: the line of the bundle has the price. Leave such a line out of sums.
   */
  isPriced: boolean;
  /**
   * The id of the line of the bundle that this line is a part of; null for any other line.
   */
  bundleLineId: string | null;
  /**
   * The product; null for a write-in.
   */
  product: {
    /**
     * The product's id in Dataverse.
     */
    id: string;
    /**
     * The product's number.
     */
    number: string | null;
    /**
     * The product's name.
     */
    name: string | null;
    [k: string]: unknown;
  } | null;
  /**
   * What a write-in is for; null where there is a product.
   */
  description: string | null;
  /**
   * The quantity; negative for a return.
   */
  quantity: string | null;
  /**
   * The name of the unit.
   */
  unit: string | null;
  /**
   * The price of a unit. It can have more decimal places than the currency.
   */
  pricePerUnit: string | null;
  /**
   * The discount of the price list for this quantity, per unit.
   */
  volumeDiscountPerUnit: string | null;
  /**
   * The discount that a person entered: per line, or per unit where the organization calculates discounts that way. The discount of the whole line is baseAmount + tax - amount.
   */
  manualDiscount: string | null;
  /**
   * (pricePerUnit - volumeDiscountPerUnit) × quantity.
   */
  baseAmount: string | null;
  /**
   * The tax on the line.
   */
  tax: string | null;
  /**
   * The line's amount after discounts, with its tax.
   */
  amount: string | null;
  [k: string]: unknown;
}
/**
 * The value of a further column.
 */
export interface InvoiceColumn {
  /**
   * text, number, money, boolean, choice, choices, date, dateTime, lookup, id, or unknown where error says why there is no value. New types may be added.
   */
  type: string;
  /**
   * number and money: a decimal number in a text; choice: an integer; choices: integers; boolean: true or false; lookup and id: a GUID; date: YYYY-MM-DD; dateTime: RFC 3339 in UTC. Null where the column is empty.
   */
  value: string | number | boolean | number[] | null;
  /**
   * Of choice, choices and boolean: the label that people see.
   */
  label?: string | null;
  /**
   * Of lookup: the logical name of the table that value is a row of.
   */
  table?: string | null;
  /**
   * Of lookup: the name of that row.
   */
  name?: string | null;
  /**
   * Of unknown: why there is no value.
   */
  error?: string;
  [k: string]: unknown;
}
