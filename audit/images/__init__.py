"""Images between bytes, arrays and tensors."""
