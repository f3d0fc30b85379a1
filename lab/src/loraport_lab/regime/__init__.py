"""When does the method help? Many small families, crossed in width, drift and kind of student, and their map."""
