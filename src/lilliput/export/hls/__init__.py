"""The constants of an integer network as a C header with `ap_int` types, for designs in high-level synthesis."""
