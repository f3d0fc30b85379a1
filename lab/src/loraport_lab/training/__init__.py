"""How the family is made: stages that can be killed and continued."""
