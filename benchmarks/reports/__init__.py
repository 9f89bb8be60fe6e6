"""What records say.

records.py           records of every kind read back into rows
pictures.py          bars of times, floors, memory and parts; curves.py: growth over tokens
scaling.py           powers of the tokens fitted to layers, and where they cross
ablation_summary.py  differences of arms and their spread, as a table and a picture
"""
