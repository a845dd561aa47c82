"""What a user sees of a machine: the serial console in the terminal, the screen, a browser page.

`console` connects the serial port to the terminal, `screen` draws what the VGA shows, `display`
serves it over HTTP on the loopback interface. It may import `devices`. Begin with `console`.
"""
