-- Writes rows of metrics over those of a lower revision. No two of them may have the same key.
INSERT INTO metrics_1m (metric, window_start, key, revision, final, dimensions, measures)
SELECT * FROM unnest(
    %(metrics)s::text[], %(starts)s::timestamptz[], %(keys)s::text[], %(revisions)s::bigint[], %(finals)s::boolean[],
    %(dimensions)s::jsonb[], %(measures)s::jsonb[]
)
ON CONFLICT (window_start, metric, key) DO UPDATE
SET revision = excluded.revision, final = excluded.final, measures = excluded.measures
WHERE metrics_1m.revision < excluded.revision
