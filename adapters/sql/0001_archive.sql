-- What the archive keeps, and how far it has got (docs/archive.md).
--
-- Times are event times: a turn's month is that of its end, however late it is written. Partitioned tables are dropped
-- month by month. Foreign keys are left out on purpose: a batch is right as Kafka has it, and every key would cost each
-- row a look-up.

-- Which offset of a Kafka partition is the next that is not in here yet. Written with the rows, in one transaction.
CREATE TABLE progress (
    log        text        NOT NULL,  -- the topic and, where the broker knows one, its id
    partition  integer     NOT NULL,
    next       bigint      NOT NULL CHECK (next >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log, partition)
);

-- A row a conversation, from its first turn or control. An erased one keeps nothing but that it is gone.
CREATE TABLE conversations (
    conversation_id uuid        NOT NULL PRIMARY KEY,
    tenant          text        NOT NULL,
    user_id         text        NOT NULL,
    title           text        NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    metadata        jsonb       NOT NULL DEFAULT '{}',
    erased_at       timestamptz
);
-- A user's list, the latest active first, with the id where two are equal.
CREATE INDEX conversations_of_user ON conversations (tenant, user_id, updated_at DESC, conversation_id DESC)
    WHERE erased_at IS NULL;
-- Asked with every batch, and almost always empty.
CREATE INDEX conversations_erased ON conversations (conversation_id) WHERE erased_at IS NOT NULL;

-- A row a finished turn. Both ids are uuid7; turn_id's time is that of the question, so its order is the order asked.
CREATE TABLE turns (
    turn_id         uuid        NOT NULL,
    ended_at        timestamptz NOT NULL,
    asked_at        timestamptz NOT NULL,
    conversation_id uuid        NOT NULL,
    parent          uuid,                  -- the turn that it follows; two with one parent are branches
    tenant          text        NOT NULL,
    user_id         text        NOT NULL,
    in_conversation boolean     NOT NULL,  -- false: a completion without a conversation, or refused before it was asked
    input           text        NOT NULL,
    answer          text        NOT NULL,
    model           text        NOT NULL,
    prompt          text        NOT NULL,  -- name and version of the instructions
    outcome         text        NOT NULL,  -- completed, stopped, failed, handed_over
    finish          text        NOT NULL,  -- OpenAI's finish reason
    error_code      text,
    error_message   text,
    input_tokens    integer     NOT NULL,
    output_tokens   integer     NOT NULL,
    started_ms      integer     NOT NULL,  -- since it was asked
    first_token_ms  integer     NOT NULL,
    total_ms        integer     NOT NULL,
    claims          integer     NOT NULL,  -- how often it was taken up; 1 when nothing went wrong
    metadata        jsonb       NOT NULL,
    PRIMARY KEY (turn_id, ended_at)
) PARTITION BY RANGE (ended_at);
-- A conversation's turns, in the order asked.
CREATE INDEX turns_of_conversation ON turns (conversation_id, turn_id);

-- The passages that an answer names, numbered as it numbers them.
CREATE TABLE citations (
    turn_id         uuid        NOT NULL,
    ended_at        timestamptz NOT NULL,
    n               integer     NOT NULL,
    document_id     text        NOT NULL,
    title           text        NOT NULL,
    url             text,
    text            text        NOT NULL,
    PRIMARY KEY (turn_id, ended_at, n)
) PARTITION BY RANGE (ended_at);

-- What a turn cost, without what was said: it outlives the erasing of a conversation, because it was paid for.
CREATE TABLE usage (
    turn_id         uuid        NOT NULL,
    ended_at        timestamptz NOT NULL,
    tenant          text        NOT NULL,
    user_id         text        NOT NULL,
    model           text        NOT NULL,
    outcome         text        NOT NULL,
    input_tokens    integer     NOT NULL,
    output_tokens   integer     NOT NULL,
    claims          integer     NOT NULL,
    PRIMARY KEY (turn_id, ended_at)
) PARTITION BY RANGE (ended_at);

-- What a person said of a turn; the latest counts.
CREATE TABLE feedback (
    turn_id         uuid        NOT NULL PRIMARY KEY,
    conversation_id uuid        NOT NULL,
    tenant          text        NOT NULL,
    user_id         text        NOT NULL,
    rating          smallint    NOT NULL CHECK (rating IN (-1, 1)),
    comment         text,
    correction      text,
    given_at        timestamptz NOT NULL
);
CREATE INDEX feedback_of_conversation ON feedback (conversation_id);

-- What was given to learn. The passages themselves are in Elasticsearch.
CREATE TABLE documents (
    tenant      text        NOT NULL,
    document_id text        NOT NULL,
    title       text        NOT NULL,
    url         text,
    status      text        NOT NULL CHECK (status IN ('queued', 'learned', 'failed')),
    error       text,
    metadata    jsonb       NOT NULL DEFAULT '{}',
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant, document_id)
);

-- The rows of the one-minute metrics topics (docs/analysts.md). ``key`` is the record's key, less the window.
CREATE TABLE metrics_1m (
    metric       text        NOT NULL,  -- turns, tokens, quality
    window_start timestamptz NOT NULL,
    key          text        NOT NULL,
    revision     bigint      NOT NULL,
    final        boolean     NOT NULL,
    dimensions   jsonb       NOT NULL,
    measures     jsonb       NOT NULL,
    PRIMARY KEY (window_start, metric, key)
);

-- A month that no partition was made for: the clock of some worker was wrong. Not empty: look at that worker.
CREATE TABLE turns_default PARTITION OF turns DEFAULT;
CREATE TABLE citations_default PARTITION OF citations DEFAULT;
CREATE TABLE usage_default PARTITION OF usage DEFAULT;

-- Makes the partitions of a month, if it lies from 2020 to two months ahead, and moves into them what had no other
-- place. With its owner's rights, so that workers need none to make tables.
CREATE FUNCTION make_month(at date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    first date := date_trunc('month', at);
    after date := first + interval '1 month';
    parent text;
    child  text;
BEGIN
    IF first < date '2020-01-01' OR first > current_date + interval '2 months' THEN
        RETURN;
    END IF;
    -- One at a time: two workers meet here at the first turn of a month.
    PERFORM pg_advisory_xact_lock(hashtext('headrace.make_month'));
    FOREACH parent IN ARRAY ARRAY['turns', 'citations', 'usage'] LOOP
        child := format('%s_%s', parent, to_char(first, 'YYYY_MM'));
        CONTINUE WHEN to_regclass(child) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES)', child, parent);
        EXECUTE format(
            'WITH moved AS (DELETE FROM %I WHERE ended_at >= %L AND ended_at < %L RETURNING *)'
            ' INSERT INTO %I SELECT * FROM moved',
            parent || '_default', first::timestamp AT TIME ZONE 'UTC', after::timestamp AT TIME ZONE 'UTC', child);
        EXECUTE format(
            'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            parent, child, first::timestamp AT TIME ZONE 'UTC', after::timestamp AT TIME ZONE 'UTC');
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION make_month(date) FROM PUBLIC;
DO $$ BEGIN
    -- pg_temp last, else whoever calls it could put tables of their own in the way of ours.
    EXECUTE format('ALTER FUNCTION make_month(date) SET search_path = %I, pg_temp', current_schema());
END $$;
