-- A database of schema 6, as the code of commit 86cbb13 lays it out. Made by hand; see README.md.
PRAGMA foreign_keys = ON;

-- crates/codius-store/src/schema/0001.sql
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

-- crates/codius-store/src/schema/0002.sql
-- Packets between the same two accounts that became durable in one write share one transaction.
-- This is how many they were; 1 for whatever is no packet. The reference is a packet's condition if
-- it was alone.
ALTER TABLE transactions ADD COLUMN packets INTEGER NOT NULL DEFAULT 1 CHECK (packets >= 1);

-- crates/codius-store/src/schema/0003.sql
-- owner: the public key (Ed25519) of who created the lease by a signed request; NULL if nobody signed.
ALTER TABLE leases ADD COLUMN owner BLOB CHECK (length(owner) = 32);
-- carried: the part of the lease's money that was owed to its program when it was created. Others may
-- have paid it, so it runs the program and is never sent to the owner.
ALTER TABLE leases ADD COLUMN carried INTEGER NOT NULL DEFAULT 0 CHECK (carried >= 0);

-- crates/codius-store/src/schema/0004.sql
-- A lease whose money is used up and whose pod is held still for a grace is `paused` with these: for how
-- long (as far as it was counted), and until when it is counted on the monotonic clock of which boot.
ALTER TABLE leases ADD COLUMN frozen_ms INTEGER CHECK (frozen_ms >= 0);
ALTER TABLE leases ADD COLUMN frozen_boot TEXT;
ALTER TABLE leases ADD COLUMN frozen_counted_to_ms INTEGER;

-- crates/codius-store/src/schema/0005.sql
-- What a start and a report read, so that they do not go through everything that ever was.
CREATE INDEX accounts_with_money ON accounts (name) WHERE balance <> 0;
-- In the order in which they were written; with the amount (and, as every index of this table, the
-- account), so that a transaction can be added up from the index alone.
CREATE INDEX postings_by_transaction ON postings (transaction_id, amount);
CREATE INDEX ended_leases_by_age ON leases (created_at_unix_ms) WHERE state = 'ended';

-- crates/codius-store/src/schema/0006.sql
-- What can go back to who paid: a row for each order whose payer has signed it or has said where unused
-- money goes. The money itself is the balance of the account refund:ID; a row of an account at zero owes
-- nothing. `id` is that of the order.
CREATE TABLE refunds (
    id                 TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 64),
    hash               TEXT    NOT NULL,
    -- The public key (Ed25519) that may draw it; NULL if nobody signed.
    owner              BLOB    CHECK (length(owner) = 32),
    -- The URL of a payment pointer that it is sent to; NULL: kept until it is drawn or used.
    destination        TEXT,
    created_at_unix_ms INTEGER NOT NULL,
    -- Tries in a row that moved nothing, and why the last one did not.
    tries              INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    trouble            TEXT,
    -- When it is tried (again); NULL: nothing is to be sent.
    next_try_unix_ms   INTEGER CHECK (next_try_unix_ms >= 0),
    CHECK (next_try_unix_ms IS NULL OR destination IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX refunds_by_program ON refunds (hash);
CREATE INDEX refunds_to_try ON refunds (next_try_unix_ms) WHERE next_try_unix_ms IS NOT NULL;

-- refund: where the unused money of a lease goes; NULL: to owed:HASH, as nobody has said who paid.
ALTER TABLE leases ADD COLUMN refund TEXT REFERENCES refunds;
CREATE INDEX leases_by_refund ON leases (refund) WHERE refund IS NOT NULL;

-- Owned leases of older hosts that go on. What was owed before stays with its program.
INSERT INTO refunds (id, hash, owner, created_at_unix_ms)
    SELECT lower(hex(randomblob(32))), hash, owner, created_at_unix_ms
    FROM leases WHERE owner IS NOT NULL AND state <> 'ended';
UPDATE leases SET refund = (SELECT refunds.id FROM refunds WHERE refunds.hash = leases.hash)
    WHERE owner IS NOT NULL AND state <> 'ended';

PRAGMA application_id = 1129268297;
PRAGMA user_version = 6;

INSERT INTO meta VALUES
  ('interledger', CAST('{"mode":"local","address":"private.codius","asset_code":"XRP","asset_scale":9}' AS BLOB)),
  ('price', CAST('{"cost_per_month":"10","instead_of":"12"}' AS BLOB));
INSERT INTO secrets VALUES ('host', x'5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a');
INSERT INTO accounts VALUES
  (1, 'local:clients', -2334215), (2, 'order:a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e', 0), (3, 'lease:aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq', 1902589), (4, 'earned', 380906),
  (5, 'order:16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4', 0), (6, 'owed:aibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaiba', 49000), (7, 'pod:aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq', 777), (8, 'order:b1e99324505bd32da0e1f85dcf5e19a09db0481e8a15f62c41eb320304a8e927', 123),
  (9, 'lease:ambqgaydambqgaydambqgaydambqgaydambqgaydambqgaydambq', 0), (10, 'owed:ambqgaydambqgaydambqgaydambqgaydambqgaydambqgaydambq', 620), (11, 'parent', 200), (12, 'order:dc81b1d371a4072be7fcfc3e1939f5bddae8bdc168846a50a78face975b9af63', 0);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (1, 1764000001000, 'packet', x'1111111111111111111111111111111111111111111111111111111111111111', 1);
INSERT INTO postings VALUES (1, 1, -2283106);
INSERT INTO postings VALUES (2, 1, 2283106);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (2, 1764000002000, 'payment', x'a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e', 1);
INSERT INTO postings VALUES (2, 2, -2283106);
INSERT INTO postings VALUES (3, 2, 2283106);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (3, 1764000003000, 'charge', NULL, 1);
INSERT INTO postings VALUES (3, 3, -380517);
INSERT INTO postings VALUES (4, 3, 380517);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (4, 1764000004000, 'packet', NULL, 5);
INSERT INTO postings VALUES (1, 4, -50000);
INSERT INTO postings VALUES (5, 4, 50000);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (5, 1764000005000, 'return', x'16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4', 1);
INSERT INTO postings VALUES (5, 5, -50000);
INSERT INTO postings VALUES (6, 5, 50000);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (6, 1764000006000, 'refund', x'2222222222222222222222222222222222222222222222222222222222222222', 1);
INSERT INTO postings VALUES (6, 6, -1000);
INSERT INTO postings VALUES (1, 6, 1000);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (7, 1764000007000, 'packet', NULL, 12);
INSERT INTO postings VALUES (1, 7, -777);
INSERT INTO postings VALUES (7, 7, 777);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (8, 1764000008000, 'gift', x'3333333333333333333333333333333333333333333333333333333333333333', 1);
INSERT INTO postings VALUES (1, 8, -9);
INSERT INTO postings VALUES (4, 8, 9);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (9, 1764000009000, 'packet', x'4444444444444444444444444444444444444444444444444444444444444444', 1);
INSERT INTO postings VALUES (1, 9, -123);
INSERT INTO postings VALUES (8, 9, 123);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (10, 1764000010000, 'packet', NULL, 2);
INSERT INTO postings VALUES (1, 10, -1200);
INSERT INTO postings VALUES (12, 10, 1200);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (11, 1764000011000, 'payment', x'dc81b1d371a4072be7fcfc3e1939f5bddae8bdc168846a50a78face975b9af63', 1);
INSERT INTO postings VALUES (12, 11, -1200);
INSERT INTO postings VALUES (9, 11, 1200);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (12, 1764000012000, 'charge', NULL, 1);
INSERT INTO postings VALUES (9, 12, -380);
INSERT INTO postings VALUES (4, 12, 380);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (13, 1764000013000, 'return', NULL, 1);
INSERT INTO postings VALUES (9, 13, -820);
INSERT INTO postings VALUES (10, 13, 820);
INSERT INTO transactions (id, at_unix_ms, reason, reference, packets) VALUES (14, 1764000014000, 'refund', x'5555555555555555555555555555555555555555555555555555555555555555', 1);
INSERT INTO postings VALUES (10, 14, -200);
INSERT INTO postings VALUES (11, 14, 200);
INSERT INTO refunds (id, hash, owner, destination, created_at_unix_ms) VALUES ('a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e', 'aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq', x'0707070707070707070707070707070707070707070707070707070707070707', 'https://wallet.example/alice', 1764000000500);
INSERT INTO leases (id, hash, created_at_unix_ms, rate, state, end_reason, segment_boot, segment_counted_to_ms, run_ms, charged, granted_ms, owner, carried, refund) VALUES (1, 'aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq', 1764000001500, '3805.17503805175038051750', 'running', NULL, '0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e', 150000, 100000, 380517, 600000, x'0707070707070707070707070707070707070707070707070707070707070707', 0, 'a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e');
INSERT INTO leases (id, hash, created_at_unix_ms, rate, state, end_reason, segment_boot, segment_counted_to_ms, run_ms, charged, granted_ms, owner, carried) VALUES (2, 'aibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaiba', 1764000004500, '3805.17503805175038051750', 'ended', 'start_failed', NULL, NULL, 0, 0, 60000, NULL, 0);
INSERT INTO leases (id, hash, created_at_unix_ms, rate, state, end_reason, segment_boot, segment_counted_to_ms, run_ms, charged, granted_ms, owner, carried) VALUES (3, 'ambqgaydambqgaydambqgaydambqgaydambqgaydambqgaydambq', 1764000009500, '3805.17503805175038051750', 'ended', 'stopped', NULL, NULL, 100, 380, 0, NULL, 40);
INSERT INTO uploads VALUES (1, '{"manifest":{"name":"a"},"private":{}}', '[]');
INSERT INTO orders (id, request, hash, kind, duration_secs, price, state, response_status, response_body, payer, created_at_unix_ms) VALUES ('a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e', x'a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', 'aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq', 'upload', 600, 2283106, 'done', 200, '{}', 'local:clients', 1764000000500);
INSERT INTO orders (id, request, hash, kind, duration_secs, price, state, response_status, response_body, payer, created_at_unix_ms) VALUES ('16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4', x'a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2', 'aibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaiba', 'upload', 60, 228311, 'failed', 402, '{}', NULL, 1764000003500);
INSERT INTO orders (id, request, hash, kind, duration_secs, price, state, response_status, response_body, payer, created_at_unix_ms) VALUES ('b1e99324505bd32da0e1f85dcf5e19a09db0481e8a15f62c41eb320304a8e927', x'a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3', 'aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq', 'extend', 60, 228311, 'open', NULL, NULL, 'local:clients', 1764000008500);
