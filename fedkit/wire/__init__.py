"""What travels: messages, codecs, and how a reply is validated."""
