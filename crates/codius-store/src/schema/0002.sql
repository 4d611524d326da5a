-- Packets between the same two accounts that became durable in one write share one transaction.
-- This is how many they were; 1 for whatever is no packet. The reference is a packet's condition if
-- it was alone.
ALTER TABLE transactions ADD COLUMN packets INTEGER NOT NULL DEFAULT 1 CHECK (packets >= 1);
