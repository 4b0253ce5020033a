-- The rights of a worker that is not the owner of its tables: to read and write rows, and to have partitions made by the
-- function that makes them. It can change no table and make none. For psql, as the owner, after each `python -m
-- adapters.schema`; a second run changes nothing. The role gets the password in ROLE_PASSWORD, where that is set.

\set ON_ERROR_STOP on
\getenv password ROLE_PASSWORD

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'headrace') THEN
        CREATE ROLE headrace LOGIN;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO headrace', current_schema());
END $$;

\if :{?password}
ALTER ROLE headrace PASSWORD :'password';
\endif

GRANT SELECT ON migrations TO headrace;
GRANT SELECT, INSERT, UPDATE ON progress, conversations, metrics_1m TO headrace;
GRANT SELECT, INSERT, DELETE ON turns, usage, citations TO headrace;
GRANT SELECT, INSERT, UPDATE, DELETE ON feedback, documents TO headrace;
GRANT EXECUTE ON FUNCTION make_month(date) TO headrace;
