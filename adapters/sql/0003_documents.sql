-- What became of documents comes from chat.document-outcomes.v1, which says more than the table had room for.

ALTER TABLE documents
    ADD COLUMN user_id  text    NOT NULL DEFAULT '',  -- who gave it
    ADD COLUMN passages integer NOT NULL DEFAULT 0,
    ADD COLUMN revision bigint  NOT NULL DEFAULT 0;   -- of two that tell of one document, the higher counts
