"""Figures as plain numbers, drawn by Plotly on pages and by Matplotlib on paper."""
