-- A turn, if it is this user's, of a conversation or not.
SELECT turn_id::text, conversation_id::text, coalesce(parent::text, ''), input, answer, model, prompt, outcome, finish,
    error_code, error_message, input_tokens, output_tokens, started_ms, first_token_ms, total_ms, claims, asked_at,
    ended_at, in_conversation, metadata, retrieval, cache, experiment, bare,
    (SELECT coalesce(json_agg(json_build_object('n', n, 'document_id', document_id, 'title', title,
        'url', coalesce(url, ''), 'text', text) ORDER BY n), '[]')
     FROM citations WHERE citations.turn_id = turns.turn_id AND citations.ended_at = turns.ended_at)
FROM turns
WHERE turn_id = %(turn_id)s::uuid AND tenant = %(tenant)s AND user_id = %(user)s
