"""How a case of the table is checked, timed and described; nothing here knows what is measured."""
