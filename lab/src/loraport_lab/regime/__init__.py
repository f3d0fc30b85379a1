"""When does the method help? Many small families, crossed in width, size of drift and kind of student, and their map."""
