"""`omniavatar page`: the commands in a browser."""
