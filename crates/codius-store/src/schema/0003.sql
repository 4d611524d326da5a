-- owner: the public key (Ed25519) of who created the lease by a signed request; NULL if nobody signed.
ALTER TABLE leases ADD COLUMN owner BLOB CHECK (length(owner) = 32);
-- carried: the part of the lease's money that was owed to its program when it was created. Others may
-- have paid it, so it runs the program and is never sent to the owner.
ALTER TABLE leases ADD COLUMN carried INTEGER NOT NULL DEFAULT 0 CHECK (carried >= 0);
