"""The target fpga: a folder of Verilog, and how it is simulated here."""
