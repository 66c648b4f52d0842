-- A ledger with double entry. Amounts are integers in the currency's smallest unit; a debit is positive, a credit negative.
CREATE TABLE IF NOT EXISTS entry (
    event_id TEXT PRIMARY KEY, -- one entry for an event, however often it is received
    invoice_id TEXT NOT NULL,
    invoice_number TEXT,
    customer TEXT,
    total INTEGER NOT NULL,
    currency TEXT NOT NULL,
    decimal_places INTEGER NOT NULL,
    due_date TEXT
);

CREATE TABLE IF NOT EXISTS posting (
    event_id TEXT NOT NULL REFERENCES entry (event_id),
    number INTEGER NOT NULL,
    account TEXT NOT NULL,
    text TEXT,
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer'),
    PRIMARY KEY (event_id, number)
);
