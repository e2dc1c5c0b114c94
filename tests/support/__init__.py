"""Plain helpers of the tests."""
