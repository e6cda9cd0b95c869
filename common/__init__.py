"""What every role shares; knows no role."""
