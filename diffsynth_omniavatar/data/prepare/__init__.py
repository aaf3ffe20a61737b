"""`omniavatar prepare`: raw footage to a training set, and a report."""
