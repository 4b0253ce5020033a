-- Forgets a document, unless it was given again since.
DELETE FROM documents WHERE tenant = %(tenant)s AND document_id = %(document_id)s AND revision <= %(revision)s
