-- What the topics say of a turn besides (docs/archive.md). Of turns from before, nothing is known of it: write the store
-- again to have it, as far as Kafka has them.

ALTER TABLE turns
    ADD COLUMN retrieval  text,                            -- found, weak, empty, unavailable; null: nothing was searched
    ADD COLUMN cache      text,                            -- exact, hit, miss; null: no cache was asked
    ADD COLUMN experiment text    NOT NULL DEFAULT '',     -- the arm; empty outside of an experiment
    ADD COLUMN bare       boolean NOT NULL DEFAULT false,  -- a model by its own name, without documents and memory
    ADD COLUMN cost       numeric;                         -- null: its model has no price

-- A row is a passage that an answer was given, under the number that it may name it by.
ALTER TABLE citations ADD COLUMN named boolean;            -- whether the answer does; null: written before this column

ALTER TABLE usage ADD COLUMN cost numeric;                 -- at the prices of when it was written
