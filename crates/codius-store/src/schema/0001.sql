-- Amounts are in the smallest unit of the host's asset. Times are milliseconds.

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE secrets (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL CHECK (length(value) = 32)
) STRICT, WITHOUT ROWID;

-- balance is the sum of the account's postings; it is kept here so that nobody has to add them up.
-- Positive: the host keeps money of the account's holder.
CREATE TABLE accounts (
    id      INTEGER PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    balance INTEGER NOT NULL,
    CHECK (balance >= 0 OR name = 'parent' OR name LIKE 'local:%')
) STRICT;

CREATE TABLE transactions (
    id         INTEGER PRIMARY KEY,
    at_unix_ms INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    reference  BLOB    CHECK (length(reference) = 32)
) STRICT;

-- The postings of one transaction sum to zero.
CREATE TABLE postings (
    account        INTEGER NOT NULL REFERENCES accounts,
    transaction_id INTEGER NOT NULL REFERENCES transactions,
    amount         INTEGER NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (account, transaction_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    id                    INTEGER PRIMARY KEY,
    hash                  TEXT    NOT NULL,
    created_at_unix_ms    INTEGER NOT NULL,
    -- Units per second, decimal text.
    rate                  TEXT    NOT NULL,
    state                 TEXT    NOT NULL CHECK (state IN ('starting', 'running', 'paused', 'ended')),
    end_reason            TEXT,
    -- While running: until when run_ms is counted, on the monotonic clock of which boot.
    segment_boot          TEXT,
    segment_counted_to_ms INTEGER,
    run_ms                INTEGER NOT NULL CHECK (run_ms >= 0),
    charged               INTEGER NOT NULL CHECK (charged >= 0),
    granted_ms            INTEGER NOT NULL CHECK (granted_ms >= 0),
    UNIQUE (hash, created_at_unix_ms),
    CHECK ((state = 'ended') = (end_reason IS NOT NULL)),
    CHECK ((state = 'running') = (segment_boot IS NOT NULL)),
    CHECK ((state = 'running') = (segment_counted_to_ms IS NOT NULL))
) STRICT;

CREATE UNIQUE INDEX one_lease_per_program ON leases (hash) WHERE state <> 'ended';

-- What a lease runs: the body of the upload, with private variables, and the digests of its images.
-- Removed when the lease ends.
CREATE TABLE uploads (
    lease  INTEGER PRIMARY KEY REFERENCES leases ON DELETE CASCADE,
    upload TEXT NOT NULL,
    images TEXT NOT NULL
) STRICT;

CREATE TABLE orders (
    id                 TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 64),
    request            BLOB    NOT NULL CHECK (length(request) = 32),
    hash               TEXT    NOT NULL,
    kind               TEXT    NOT NULL CHECK (kind IN ('upload', 'extend')),
    duration_secs      INTEGER NOT NULL CHECK (duration_secs >= 0),
    price              INTEGER NOT NULL CHECK (price >= 0),
    state              TEXT    NOT NULL CHECK (state IN ('open', 'done', 'failed')),
    response_status    INTEGER,
    response_body      TEXT,
    payer              TEXT,
    created_at_unix_ms INTEGER NOT NULL,
    CHECK ((state = 'open') = (response_status IS NULL)),
    CHECK ((state = 'open') = (response_body IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX open_orders ON orders (id) WHERE state = 'open';
CREATE INDEX orders_by_age ON orders (created_at_unix_ms) WHERE state <> 'open';
