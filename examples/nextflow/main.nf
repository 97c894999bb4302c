// Call and align POD5 folders, with one process per folder:
//     nextflow run main.nf --pod5 '/data/*/pod5' --reference ref.fasta [--server HOST:PORT]
// Written for Nextflow 24 or newer (DSL2). It has not been run: see ../README.md.
params.pod5 = null
params.reference = null
params.model = 'auto'
params.server = null
params.min_qscore = 0

process PORESTREAM_CALL {
    tag "${sample}"
    cpus { params.server ? 1 : 8 }
    memory '8 GB'
    errorStrategy { task.exitStatus in [4, 143] ? 'retry' : 'terminate' }   // 4: the server was lost, 143: SIGTERM
    maxRetries 2

    input:
    tuple val(sample), path(pod5), path(reference)

    output:
    tuple val(sample), path("${sample}.bam"), path("${sample}.bam.bai"), emit: bam
    path "${sample}.sequencing_summary.txt", emit: summary
    path "${sample}.books.json", emit: books
    path "${sample}.rejected_reads.tsv", optional: true, emit: rejected

    script:
    def where = params.server ? "--server ${params.server}" : "--threads ${task.cpus}"
    """
    porestream call ${pod5} --recursive --model ${params.model} --reference ${reference} ${where} \\
        --min-qscore ${params.min_qscore} --sort --emit-summary --summary-json ${sample}.books.json \\
        --output ${sample}.bam
    """
}

workflow {
    if (!params.pod5 || !params.reference) error "give --pod5 'FOLDERS' and --reference FASTA"
    reference = file(params.reference, checkIfExists: true)
    folders = Channel.fromPath(params.pod5, type: 'dir', checkIfExists: true)
        .map { folder -> tuple(folder.parent.name, folder, reference) }
    PORESTREAM_CALL(folders)
}
