-- The size of a lease's pod, as the host sold it when the lease was created: it keeps it, whatever the name
-- stands for later. Leases of older hosts are small.
ALTER TABLE leases ADD COLUMN machine TEXT NOT NULL DEFAULT 'small';
ALTER TABLE leases ADD COLUMN vcpus INTEGER NOT NULL DEFAULT 1 CHECK (vcpus BETWEEN 1 AND 255);
ALTER TABLE leases ADD COLUMN memory_mib INTEGER NOT NULL DEFAULT 512 CHECK (memory_mib BETWEEN 1 AND 4294967295);
ALTER TABLE leases ADD COLUMN disk_mib INTEGER NOT NULL DEFAULT 1024 CHECK (disk_mib BETWEEN 1 AND 4294967295);
