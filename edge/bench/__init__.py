"""What an artifact costs on a device."""
