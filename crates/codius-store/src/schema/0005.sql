-- What a start and a report read, so that they do not go through everything that ever was.
CREATE INDEX accounts_with_money ON accounts (name) WHERE balance <> 0;
-- In the order in which they were written; with the amount (and, as every index of this table, the
-- account), so that a transaction can be added up from the index alone.
CREATE INDEX postings_by_transaction ON postings (transaction_id, amount);
CREATE INDEX ended_leases_by_age ON leases (created_at_unix_ms) WHERE state = 'ended';
