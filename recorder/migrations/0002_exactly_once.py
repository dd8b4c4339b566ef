from django.db import migrations, models


class Migration(migrations.Migration):
    """Only columns that may be NULL, which is a matter of the catalogue, and constraints of the small tables."""

    dependencies = [
        ('recorder', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='recordedenvelope',
            name='entry',
            field=models.CharField(editable=False, help_text='entry of the recorder stream behind an envelope without a position', max_length=48, null=True),
        ),
        migrations.AddField(
            model_name='recordedgap',
            name='key',
            field=models.CharField(editable=False, max_length=200, null=True),
        ),
        migrations.AddField(
            model_name='recorderrun',
            name='recorded_until_ms',
            field=models.BigIntegerField(blank=True, help_text='all that the store took before this time is recorded', null=True),
        ),
        migrations.AddField(
            model_name='recorderrun',
            name='store_born_ms',
            field=models.BigIntegerField(blank=True, help_text="when the data of the store began; none for a server's own run", null=True),
        ),
        migrations.AlterField(
            model_name='recordedgap',
            name='session_id',
            field=models.CharField(blank=True, db_index=True, max_length=100),
        ),
        migrations.AddConstraint(
            model_name='recordedgap',
            constraint=models.UniqueConstraint(fields=('key',), name='recorded_gap_once_per_key'),
        ),
        migrations.AddConstraint(
            model_name='recorderrun',
            constraint=models.UniqueConstraint(fields=('store_born_ms', 'started_ms'), name='recorder_run_of_a_store_once'),
        ),
    ]
