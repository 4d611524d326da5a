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
