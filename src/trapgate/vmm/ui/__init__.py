"""What a user sees of a machine: the serial console in the terminal, the screen, a browser page.

`console` carries the serial port, `screen` draws what the VGA shows, `display` serves it over
HTTP on the loopback interface. It imports `devices`. Begin with `console`.
"""
