-- A lease whose money is used up and whose pod is held still for a grace is `paused` with these: for how
-- long (as far as it was counted), and until when it is counted on the monotonic clock of which boot.
ALTER TABLE leases ADD COLUMN frozen_ms INTEGER CHECK (frozen_ms >= 0);
ALTER TABLE leases ADD COLUMN frozen_boot TEXT;
ALTER TABLE leases ADD COLUMN frozen_counted_to_ms INTEGER;
