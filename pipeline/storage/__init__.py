"""The only code that opens data: volumes, tables, tracings and ledgers."""
