"""Trainers that the shipped baseline is measured against. Written here from their ideas; nothing else imports them."""
