"""One module a command of `mos`; heavy imports happen inside the functions."""
