-- What this user said of turns.
SELECT turn_id::text, rating, coalesce(comment, ''), coalesce(correction, ''), given_at
FROM feedback
WHERE turn_id = ANY(%(turn_ids)s::uuid[]) AND tenant = %(tenant)s AND user_id = %(user)s
