"""Whom we talk to: one file per outside system, no Faust; library errors become `domain.errors`."""
